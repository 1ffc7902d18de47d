# The real docker client, on whatever engine DOCKER_HOST names. What it prints is compared between engines, so nothing in it may
# depend on ids, times or addresses.
set -u
said() { echo "## $*"; }
masked() { sed -E 's/[0-9a-f]{64}/ID/g; s/\b[0-9a-f]{12}\b/ID12/g'; }

said run
docker run --rm busybox echo hello
docker run --rm busybox sh -c 'echo out; echo err >&2; exit 7' 2>&1; echo "code $?"
docker run --rm busybox no-such-program >/dev/null 2>&1; echo "code $?"
docker run --rm busybox /etc >/dev/null 2>&1; echo "code $?"
docker run --rm --no-such-flag busybox >/dev/null 2>&1; echo "code $?"
echo from-stdin | docker run --rm -i busybox cat
docker run --rm -e A=1 --env B --hostname h --workdir /tmp -u 1000:50 busybox sh -c 'echo $A $(hostname) $(pwd) $(id -u):$(id -g)'
docker run --rm --network none --read-only --tmpfs /t busybox sh -c 'touch /x 2>/dev/null || echo read-only; touch /t/x && echo writable'
docker run --rm -m 64m --cpus 0.5 --pids-limit 40 busybox echo limited

said life
docker create --name web --label team=a --label stage=test -p 127.0.0.1::80 busybox httpd -f -h /www | masked
docker ps -a --format '{{.Names}} {{.Image}} {{.State}} {{.Status}} {{.Labels}}'
docker start web
docker inspect -f '{{.State.Status}} {{.Config.Labels.team}} {{.HostConfig.NetworkMode}} {{json .Config.Cmd}}' web
address=$(docker port web 80/tcp)
for _ in 1 2 3 4 5 6 7 8 9 10; do curl -sf "http://$address/index.html" && break; sleep 0.2; done
docker ps --filter label=team=a --format '{{.Names}}'
docker ps --filter label=team=b --format '{{.Names}}'
docker exec web sh -c 'echo in; exit 4'; echo "code $?"
docker exec -e X=y -w /etc -u user web sh -c 'echo $X $(pwd) $(id -un)'
echo piped | docker exec -i web cat
docker exec -d web touch /detached; sleep 0.5; docker exec web ls /detached
docker pause web; docker inspect -f '{{.State.Status}}' web; docker unpause web
docker rename web site; docker stop -t 1 site; docker inspect -f '{{.State.Status}}' site
docker start site; docker restart -t 0 site; docker kill site; docker wait site
docker diff site | sort
docker rm site
docker inspect site; echo "code $?"
docker rm site; echo "code $?"

said logs
docker run -d --name talk busybox sh -c 'for i in 1 2 3; do echo line $i; done; echo err >&2; sleep 1; echo last' | masked
docker logs -f talk 2>&1 | sort
docker logs --tail 1 talk 2>/dev/null
docker logs -t --tail 1 talk 2>/dev/null | sed -E 's/^[0-9TZ:.-]+ /TIME /'
docker logs --since 1h --until 0s talk 2>/dev/null | head -2
docker wait talk; docker rm talk

said copy
docker create --name files busybox sh >/dev/null
folder=$(mktemp -d); echo one > $folder/one; mkdir $folder/sub; echo two > $folder/sub/two
docker cp -q $folder/one files:/tmp/; docker cp -q $folder/sub files:/tmp/; docker cp -q files:/tmp/sub $folder/back
cat $folder/back/two; docker cp files:/tmp/one - | tar -xO; docker cp files:/nothing $folder >/dev/null 2>&1; echo "code $?"
tar -C $folder -c one | docker cp - files:/www; docker start files >/dev/null; docker cp -q files:/www/one $folder/third; cat $folder/third
docker rm -f files; rm -rf $folder

said images
docker images --format '{{.Repository}}:{{.Tag}}' | sort
docker tag busybox local/copy:v1; docker image inspect -f '{{json .RepoTags}}' busybox
docker rmi local/copy:v1
docker history --format '{{.CreatedBy}}' busybox
docker run --name base busybox touch /made; docker commit -c 'CMD ["ls","/made"]' base local/made | sed -E 's/[0-9a-f]{64}/ID/'
docker run --rm local/made; docker rm base
docker save local/made | docker load; docker rmi -f local/made | sed -E 's/[0-9a-f]{64}/ID/' | sort -u | head -2
docker export $(docker create --name exported busybox) | docker import - local/imported | sed -E 's/[0-9a-f]{64}/ID/'
docker rm exported; docker run --rm local/imported /bin/echo imported; docker rmi local/imported | head -1
docker rmi nowhere; echo "code $?"

said volumes
docker volume create --label a=b data; docker volume ls --format '{{.Name}} {{.Driver}}'
docker run --rm -v data:/d busybox sh -c 'echo kept > /d/file'; docker run --rm -v data:/d:ro busybox sh -c 'cat /d/file; touch /d/x 2>/dev/null || echo read-only'
docker run --rm --mount type=volume,src=data,dst=/m --mount type=tmpfs,dst=/t busybox cat /m/file
docker volume inspect -f '{{.Name}} {{.Labels.a}} {{.Scope}}' data; docker volume rm data; docker volume rm data; echo "code $?"

said networks
docker network create --subnet 10.77.20.0/24 --label a=b net | masked; docker network ls --filter driver=bridge --filter name=net --format '{{.Name}} {{.Driver}} {{.Scope}}'
docker run -d --name server --network net --network-alias db --ip 10.77.20.9 busybox sleep 1000 >/dev/null
docker run --rm --network net busybox ping -c 1 -W 2 db | head -1
# dockerd answers before the container is off its network.
for _ in $(seq 100); do [ "$(docker network inspect -f '{{len .Containers}}' net)" = 1 ] && break; sleep 0.1; done
docker network inspect -f '{{range .IPAM.Config}}{{.Subnet}}{{end}} {{len .Containers}}' net
docker network disconnect net server; docker network connect --alias again net server
docker run --rm --network net busybox ping -c 1 -W 2 again >/dev/null; echo "code $?"
docker network rm net >/dev/null 2>&1; echo "code $?"
docker rm -f server; docker network rm net

said limits
docker run -d --name box -m 64m busybox sleep 1000 >/dev/null
docker update -m 96m --memory-swap 96m box; docker inspect -f '{{.HostConfig.Memory}}' box
docker stats --no-stream --format '{{.Name}} {{.PIDs}}' box; docker top box -o pid,comm | tail -1 | tr -s ' ' | cut -d' ' -f2
docker rm -f box
docker run -d --name checked --health-cmd 'test -e /ok' --health-interval 200ms --health-retries 1 busybox sh -c 'touch /ok; sleep 1000' >/dev/null
for _ in $(seq 50); do [ "$(docker inspect -f '{{.State.Health.Status}}' checked)" = healthy ] && break; sleep 0.1; done
docker ps --filter health=healthy --format '{{.Names}}'; docker rm -f checked
docker run -d --name again --restart on-failure:2 busybox sh -c 'echo try; exit 3' >/dev/null
for _ in $(seq 80); do [ "$(docker inspect -f '{{.RestartCount}}{{.State.Status}}' again)" = 2exited ] && break; sleep 0.1; done
docker logs again; docker inspect -f '{{.RestartCount}} {{.State.ExitCode}}' again; docker rm again

said prune
docker create --name old busybox >/dev/null; docker container prune -f | masked | head -2; docker volume prune -f | head -1; docker network prune -f | head -1
docker info --format '{{.OSType}} {{.Swarm.LocalNodeState}} {{.ContainersRunning}}'
docker version --format '{{.Server.Os}}/{{.Server.Arch}}'
docker system df --format '{{.Type}}' | sort
docker ps -aq | wc -l
