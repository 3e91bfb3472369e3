"""What tests that compile let pass."""

import pytest

# Dynamo looks at `.grad` of every tensor that it meets, and makes an instance of every torch.autograd.Function.
OWN_WARNINGS = [
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
]
