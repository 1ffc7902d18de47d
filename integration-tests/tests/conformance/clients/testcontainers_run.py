"""PyPI testcontainers on whatever engine DOCKER_HOST names; its reaper is off, because its image can't be had without a network."""
import urllib.request
from testcontainers.core.container import DockerContainer
from testcontainers.core.network import Network
from testcontainers.core.waiting_utils import wait_for_logs

with DockerContainer("busybox").with_command("sh -c 'echo ready for work; httpd -f -h /www'").with_exposed_ports(80).with_env("A", "b") as web:
    wait_for_logs(web, "ready for work", timeout=20)
    port = web.get_exposed_port(80)
    for attempt in range(50):
        try:
            print(urllib.request.urlopen(f"http://127.0.0.1:{port}/index.html", timeout=5).read().decode().strip())
            break
        except OSError:
            __import__("time").sleep(0.1)
    code, output = web.exec("sh -c 'echo in $A; exit 3'")
    print(code, output.decode().strip())
    print(web.get_logs()[0].decode().strip())
with Network() as network:
    with DockerContainer("busybox").with_command("sleep 1000").with_network(network).with_network_aliases("db"):
        with DockerContainer("busybox").with_command("sh -c 'ping -c 1 -W 2 db | head -1 | cut -d\" \" -f2; echo done'").with_network(network) as asking:
            wait_for_logs(asking, "done", timeout=20)
            print(asking.get_logs()[0].decode().strip())
with DockerContainer("busybox").with_command("cat /v/file").with_volume_mapping("/etc/hostname", "/v/file", "ro") as reader:
    reader.get_wrapped_container().wait()
    print(bool(reader.get_logs()[0].strip()))
