"""What can be done with notifications; one file per verb."""
