"""PyPI docker on whatever engine DOCKER_HOST names. What it prints is compared between engines."""
import io, json, os, re, sys, tarfile, threading, time
import docker
from docker.errors import APIError, ContainerError, ImageNotFound, NotFound

version = os.environ.get("DOCKER_API_VERSION", "auto")
client = docker.from_env(version=version, timeout=60)
def said(*words):
    print(*[re.sub(r"[0-9a-f]{64}|\b[0-9a-f]{10,12}\b", "ID", str(word)) for word in words], flush=True)

assert client.ping()
said("ping", client.version()["Os"], client.info()["OSType"])

# Containers.
said(client.containers.run("busybox", "echo hello", remove=True))
said(client.containers.run("busybox", ["sh", "-c", "echo out; echo err >&2"], remove=True, stderr=True, stdout=False))
try:
    client.containers.run("busybox", ["sh", "-c", "echo broken >&2; exit 3"], remove=True)
except ContainerError as error:
    said("container error", error.exit_status, error.stderr)
try:
    client.images.get("nowhere")
except ImageNotFound as error:
    said("no image", error.response.status_code)
try:
    client.containers.run("busybox", "no-such-program", remove=True)
except APIError as error:
    said("no program", error.response.status_code, "executable file not found" in str(error))

web = client.containers.run("busybox", ["sh", "-c", "trap 'exit 0' TERM; echo ready; while :; do usleep 20000; done"], name="web", detach=True,
    labels={"a": "b"}, environment={"K": "v"}, mem_limit="64m", cpu_shares=512, tmpfs={"/t": "size=1m"}, hostname="named", working_dir="/tmp",
    ports={"80/tcp": ("127.0.0.1", None)}, extra_hosts={"db": "10.77.0.9"}, dns=["10.77.0.1"], cap_drop=["MKNOD"], ulimits=[docker.types.Ulimit(name="nofile", soft=100, hard=200)],
    restart_policy={"Name": "on-failure", "MaximumRetryCount": 1}, log_config=docker.types.LogConfig(type="json-file", config={"max-size": "1m"}))
web.reload()
said(web.name, web.status, web.labels, web.image.tags, web.attrs["Config"]["Env"][0], web.attrs["HostConfig"]["Memory"], list(web.ports))
said([c.name for c in client.containers.list(filters={"label": "a=b"})], [c.name for c in client.containers.list(all=True, filters={"status": "exited"})])
code, output = web.exec_run("sh -c 'echo in $K; pwd; ulimit -n; exit 4'")
said("exec", code, output)
code, (out, err) = web.exec_run(["sh", "-c", "echo o; echo e >&2"], demux=True)
said("demux", code, out, err)
said("user", web.exec_run("id -u", user="1000").output, web.exec_run("env", environment={"X": "1"}).output.count(b"X=1"))
said("stream", b"".join(web.exec_run("seq 1 5", stream=True).output))
code, socket = web.exec_run("cat", stdin=True, socket=True)
socket._sock.sendall(b"typed\n"); socket._sock.shutdown(1)
said("socket", socket.read()[8:])
said("top", web.top(ps_args="-o pid,comm")["Titles"])
stats = web.stats(stream=False)
said("stats", stats["memory_stats"]["limit"], stats["pids_stats"]["current"] > 0, sorted(stats["precpu_stats"])[:1])
said("logs", web.logs(), web.logs(tail=1, stderr=False), len(web.logs(timestamps=True)) > 25)
web.pause(); web.reload(); said(web.status); web.unpause(); web.reload(); said(web.status)
web.rename("site"); web.reload(); said(web.name)
web.update(mem_limit="96m", memswap_limit="96m"); web.reload(); said(web.attrs["HostConfig"]["Memory"])
said(web.wait.__name__, web.stop(timeout=5)); said(web.wait()["StatusCode"])
web.start(); web.restart(timeout=5); web.kill(); said(web.wait()["StatusCode"])
said("diff", sorted((c["Path"], c["Kind"]) for c in web.diff() or []))
web.remove()
try:
    client.containers.get("site")
except NotFound as error:
    said("gone", error.explanation)

# Attach, with input.
cat = client.containers.create("busybox", "cat", stdin_open=True)
socket = cat.attach_socket(params={"stdin": 1, "stdout": 1, "stream": 1})
cat.start(); socket._sock.sendall(b"through\n")
said("attach", socket.read(8 + 8)[8:]); socket.close(); cat.remove(force=True)
follow = client.containers.run("busybox", ["sh", "-c", "for i in 1 2 3; do echo $i; usleep 100000; done"], detach=True)
said("follow", list(follow.logs(stream=True, follow=True))); follow.remove(force=True)

# Archives.
files = client.containers.create("busybox", "cat /tmp/in")
data = io.BytesIO()
with tarfile.open(fileobj=data, mode="w") as archive:
    info = tarfile.TarInfo("in"); info.size = 5; info.mode = 0o600
    archive.addfile(info, io.BytesIO(b"bytes"))
said("put", files.put_archive("/tmp", data.getvalue()))
stream, stat = files.get_archive("/tmp/in")
with tarfile.open(fileobj=io.BytesIO(b"".join(stream))) as archive:
    said("get", stat["name"], stat["size"], oct(stat["mode"]), archive.extractfile("in").read())
try:
    files.get_archive("/nothing")
except NotFound as error:
    said("no path", error.response.status_code)
files.start(); files.wait(); said(files.logs()); said(len(b"".join(files.export())) > 100000)

# Images.
image = files.commit("made/py", tag="1", message="why", changes='CMD ["true"]')
said(image.tags, image.attrs["Config"]["Cmd"], image.attrs["Comment"], len(image.history()) > 1)
said(image.tag("made/other", "2"), sorted(i for i in client.images.get("made/py:1").tags))
saved = b"".join(image.save(named=True))
client.images.remove("made/other:2"); files.remove(); client.images.remove("made/py:1")
said([i.tags for i in client.images.load(saved)]); client.images.remove("made/py:1", force=True)
said(sorted(t for i in client.images.list() for t in i.tags))

# Volumes.
volume = client.volumes.create("vol", labels={"a": "b"}); said(volume.name, volume.attrs["Labels"], volume.attrs["Driver"])
client.containers.run("busybox", "sh -c 'echo kept > /v/f'", volumes={"vol": {"bind": "/v", "mode": "rw"}}, remove=True)
said(client.containers.run("busybox", "cat /v/f", volumes={"vol": {"bind": "/v", "mode": "ro"}}, remove=True))
said(client.containers.run("busybox", "cat /m/f", mounts=[docker.types.Mount("/m", "vol", read_only=True)], remove=True))
said([v.name for v in client.volumes.list(filters={"label": "a"})]); volume.remove()
try:
    client.volumes.get("vol")
except NotFound as error:
    said("no volume", error.explanation)

# Networks.
pool = docker.types.IPAMPool(subnet="10.77.21.0/24", gateway="10.77.21.1")
net = client.networks.create("net", driver="bridge", ipam=docker.types.IPAMConfig(pool_configs=[pool]), labels={"a": "b"}, check_duplicate=True)
said(net.name, json.dumps(client.networks.get("net").attrs["IPAM"]["Config"], sort_keys=True))
server = client.containers.run("busybox", "sleep 1000", name="server", network="net", detach=True)
said(client.containers.run("busybox", "ping -c 1 -W 2 server", network="net", remove=True).splitlines()[0].split()[:2])
net.reload(); said([c.name for c in net.containers])
net.disconnect(server); net.connect(server, aliases=["db"], ipv4_address="10.77.21.77"); server.reload()
said(server.attrs["NetworkSettings"]["Networks"]["net"]["IPAddress"])
said([n.name for n in client.networks.list(names=["net"])])
server.remove(force=True); net.remove()

# Health and events.
since = int(time.time())
seen = []
stream = client.events(decode=True, filters={"container": "watched"})
def watch():
    for event in stream:
        seen.append(event["Action"].split(":")[0])
        if event["Action"] == "destroy":
            break
watcher = threading.Thread(target=watch); watcher.start(); time.sleep(0.5)
watched = client.containers.run("busybox", "sleep 1000", name="watched", detach=True, healthcheck={"test": ["CMD", "true"], "interval": 200_000_000})
for _ in range(100):
    watched.reload()
    if watched.attrs["State"]["Health"]["Status"] == "healthy": break
    time.sleep(0.1)
said("health", watched.health)
watched.remove(force=True); watcher.join(20)
said("events", [e for e in dict.fromkeys(seen) if not e.startswith("exec")])

# Df, prunes, login that is refused.
df = client.df(); said(sorted(k for k in df if k in ("Images", "Containers", "Volumes", "LayersSize")))
client.containers.create("busybox", "true")
said(len(client.containers.prune()["ContainersDeleted"]), client.volumes.prune()["SpaceReclaimed"], client.networks.prune()["NetworksDeleted"])
said([c.name for c in client.containers.list(all=True)])
for missing in ("stop", "start", "kill", "pause"):
    try:
        getattr(client.api, missing)("nobody")
    except NotFound as error:
        said(missing, error.explanation)
