"""`zimage sweep`: train one dataset with several settings, and compare the LoRAs."""
