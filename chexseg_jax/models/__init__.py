"""Networks: they know no pathology and no dataset."""
