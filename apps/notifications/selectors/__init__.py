"""What is read of notifications and their deliveries: by keyset, inside one client and mode.

Every statement carries a literal bound on the ids of the partitioned tables, so that it opens only the partitions
it needs; a page costs the same at the start and deep in a list.
"""
