"""Flow matching as pure mathematics: tensors in, tensors out; torch only."""
