"""Free memory, of the machine or of its container."""

from nnunet_ext.utils.free_memory import free_bytes


def test_the_smaller_of_machine_and_container(tmp_path):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 9000 kB\nMemAvailable:    4000 kB\n")
    assert free_bytes(meminfo, tmp_path / "none") == 4000 * 1024
    (tmp_path / "memory.current").write_text("1000\n")
    for limit, expected in (("max", 4000 * 1024), ("3000", 2000), ("500", 0)):
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        assert free_bytes(meminfo, tmp_path) == expected
    assert free_bytes(tmp_path / "none", tmp_path / "none") is None
