"""The programs of a model under a strategy: functions of whole arrays, parameters and caches."""
