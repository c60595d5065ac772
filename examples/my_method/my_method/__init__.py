"""A method, a metric and a data source for fedvlm."""
