"""The paper's tables and ours: recipes listed beside its figures, runs compared with them."""
