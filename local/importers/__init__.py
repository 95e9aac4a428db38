"""What corpora come as: each form is read into the same entries, then into lhotse's manifests."""
