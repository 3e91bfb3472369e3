"""One module, one function and one params section for each stage."""
