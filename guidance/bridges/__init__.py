"""Bridges to models that were not made here: pretrained text encoders as conditions, pretrained denoisers as networks.

Their libraries are imported when they are first used.
"""
