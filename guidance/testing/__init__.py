"""Does a modality keep the contract? ``pytest --pyargs guidance.testing --modality=NAME`` asks an installed plug-in."""
