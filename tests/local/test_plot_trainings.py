"""The picture of several trainings."""

import json

import pytest

from local.plot_trainings import main


def write_history(folder, wers):
    folder.mkdir()
    records = [
        {"epoch": i + 1, "train": {"pruned": 1 / (i + 1)}, "valid": {"pruned": 0.5}, "wer": wer}
        for i, wer in enumerate(wers)
    ]
    (folder / "history.json").write_text(json.dumps(records))
    return str(folder)


def test_it_draws_all_trainings_and_names_the_best_epochs(tmp_path, capsys):
    folders = [
        write_history(tmp_path / "a", [90.0, 5.0, 0.0]),
        write_history(tmp_path / "b", [80.0, 4.0, 6.0]),
    ]
    main([*folders, "--out", str(tmp_path / "curves.png")])
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("a: 3 epochs, best validation WER 0.00 % in epoch 3")
    assert told[1].startswith("b: 3 epochs, best validation WER 4.00 % in epoch 2")


@pytest.mark.parametrize("content", ["", "[]", "{"])
def test_a_folder_without_a_history_is_named(tmp_path, content):
    from xlsr_transducer.core.errors import UserError

    if content:
        (tmp_path / "history.json").write_text(content)
    with pytest.raises(UserError, match="history.json"):
        main([str(tmp_path), "--out", str(tmp_path / "curves.png")])
    assert not (tmp_path / "curves.png").exists()
