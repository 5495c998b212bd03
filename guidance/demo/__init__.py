"""`polyguide demo`: some models trained, sampled and measured in one process, planned before it begins, on one page."""
