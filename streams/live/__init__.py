"""Kafka enters, Kafka leaves: reduce, match and judge as they run all the time, one process or many."""
