"""Boards: from records to ranked rows, and every form in which people read them."""
