"""The modalities that polyguide ships with. Each is a plug-in like one from outside: the core imports none of them."""
