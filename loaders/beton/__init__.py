"""FFCV's .beton files without FFCV: checked, read, written and published."""
