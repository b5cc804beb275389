"""Settings every test shares: JAX in float64 on the CPU, and the hypothesis profiles.

HYPOTHESIS_PROFILE=thorough asks for many more examples; the default is `fast`. With CI set, examples are
the same in every run.
"""

import os
import warnings

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# The matrices are small: threads that wait for each other cost more than they save.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if "PYTEST_XDIST_WORKER" in os.environ:  # beside another one
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import jax
import pytest
from hypothesis import HealthCheck, settings

jax.config.update("jax_enable_x64", True)

# No deadline: the first example of a test pays for JAX compilation.
_shared = settings(
    deadline=None,
    derandomize="CI" in os.environ,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("fast", _shared, max_examples=25)
settings.register_profile("thorough", _shared, max_examples=500)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fast"))

HERE = os.getcwd()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item):
    """A test that leaves the working folder does not take the others with it."""
    yield
    try:
        left = os.getcwd() != HERE
    except FileNotFoundError:
        left = True
    if left:
        os.chdir(HERE)
        warnings.warn(f"{item.nodeid} left the working folder", stacklevel=1)
