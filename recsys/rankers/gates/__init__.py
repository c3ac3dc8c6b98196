"""Gates of a mixture of experts: which experts an example meets, and with what weights."""
