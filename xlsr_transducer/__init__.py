"""A recipe that turns a pretrained XLSR network into a transducer that streams."""
