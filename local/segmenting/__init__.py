"""Long recordings and their transcripts as utterances: what ``python -m local.segment`` does."""
