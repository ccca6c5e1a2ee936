"""Clips to vectors: encode (model and options), rows (what files hold), job (resumable, shared), files (Parquet, npz, safetensors)."""
