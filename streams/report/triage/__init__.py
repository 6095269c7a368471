"""A state enters; what to do next leaves: the playbook's flowcharts as data, each question a query over what landed."""
