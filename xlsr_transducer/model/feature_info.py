"""How stored features were made, which is what enters a model."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.core.files import write_text
from xlsr_transducer.data.features import INFO_FILE, damaged_info, extraction_command, read_info
from xlsr_transducer.model.chunking import ChunkSettings
from xlsr_transducer.model.normalize import check_mode


@dataclasses.dataclass(frozen=True)
class FeatureInfo:
    """How features were made: everything that decides their numbers.

    Raises:
      UserError: settings that contradict each other.
    """

    xlsr: str  # a Hugging Face name, or an absolute path
    sha256: str  # of the file with the weights
    cut: str  # frontend, a layer's number, or last
    normalize: str
    feature_dim: int
    chunk: ChunkSettings = ChunkSettings()  # noqa: RUF009  frozen
    dtype: str = "float16"
    extractor: str = "transformers"

    def __post_init__(self) -> None:
        check_mode(self.normalize)
        if self.chunk.is_full_context:
            return
        self.chunk.require_consistent()
        check_mode(self.normalize, streaming=True)
        if self.cut == "frontend":
            raise UserError(
                f"--chunk-size {self.chunk.chunk_size} has no effect at --cut frontend, where a "
                "frame sees 25 ms and no more: leave it out; the features serve every chunk size"
            )

    @property
    def name(self) -> str:
        """The usual name of the folder, such as ``12-cumulative-chunk-16-left-2-sink-4``."""
        parts = [self.cut, self.normalize]
        if not self.chunk.is_full_context:
            parts.append(self.chunk.describe())
        if self.extractor != "transformers":
            parts.append(self.extractor)
        return "-".join(parts)

    def differences(self, other: FeatureInfo) -> list[str]:
        """``["cut: frontend and 12", ...]``: where ``self`` and ``other`` differ.

        The place of the checkpoint does not count, its content does.
        """
        mine, theirs = _to_dict(self), _to_dict(other)
        keys = [key for key in mine if key != "xlsr" and mine[key] != theirs[key]]
        return [f"{key}: {mine[key]} and {theirs[key]}" for key in keys]

    def command(self) -> str:
        """The command that makes such features, without the folder."""
        return extraction_command(_to_dict(self))

    def save(self, folder: Path) -> None:
        """Writes features.json."""
        write_text(folder / INFO_FILE, json.dumps(_to_dict(self), indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> FeatureInfo:
        """Reads features.json.

        Raises:
          UserError: it is missing or damaged.
        """
        values = read_info(folder)
        try:
            return cls(**{**values, "chunk": ChunkSettings(**values["chunk"])})
        except UserError as e:
            raise UserError(f"{folder / INFO_FILE}: {e}") from e
        except (ValueError, TypeError) as e:
            raise damaged_info(folder, e) from e


def _to_dict(info: FeatureInfo) -> dict[str, Any]:
    return dataclasses.asdict(info)
