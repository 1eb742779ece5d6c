"""omni_lab: a laboratory for omni-modal models with Dynamic Modality Routing."""

__version__ = "0.1.0"
