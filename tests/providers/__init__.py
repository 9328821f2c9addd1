import pytest

pytest.register_assert_rewrite("tests.providers.contract")  # its asserts explain themselves, as a test's do
