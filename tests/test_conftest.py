"""The leak check fails a test that leaves something behind, and no other."""

import pytest

pytest_plugins = ["pytester"]

LEAVES = {
    "a task": "asyncio.get_running_loop().create_task(asyncio.sleep(60))",
    "a socket": "kept.append(socket.socket())",
}


@pytest.mark.parametrize("what", [*LEAVES, "nothing"])
def test_what_is_left_behind_fails_the_test(pytester: pytest.Pytester, what: str, request: pytest.FixtureRequest):
    """Tasks and sockets are told apart from what was there before."""
    conftest = request.config.rootpath / "tests" / "conftest.py"
    pytester.makeconftest(conftest.read_text())
    pytester.makepyfile(
        f"""
        import asyncio, socket

        kept = []

        async def test_leaves():
            {LEAVES.get(what, "await asyncio.sleep(0)")}
        """
    )
    options = ["-o", "asyncio_mode=auto", "-o", "asyncio_default_fixture_loop_scope=function", "-p", "no:cacheprovider"]
    options += ["-o", f"pythonpath={conftest.parent}"]
    result = pytester.runpytest_subprocess(*options)
    result.assert_outcomes(passed=1, errors=0 if what == "nothing" else 1)
    if what != "nothing":
        result.stdout.fnmatch_lines(["*left behind by the test*"])
