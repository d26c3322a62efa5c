"""Trained models: what each kind is and how it is built, apart from how it was trained."""
