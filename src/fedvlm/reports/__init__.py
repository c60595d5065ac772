"""Reports: tables, statistics, comparisons and pictures of finished runs."""
