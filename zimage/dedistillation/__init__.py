"""`zimage training-adapter`: make the LoRA that a distilled base wears while another LoRA is trained on it."""
