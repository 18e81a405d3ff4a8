"""Rows to tokens: dataset formats, chat templates, masks, packing, collation."""
