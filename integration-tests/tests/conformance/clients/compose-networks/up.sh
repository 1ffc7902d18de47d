# docker-compose with networks of every kind: two with subnets and addresses of their own, one of them internal, one external;
# names shared by several, a published range, a volume that is older than the application.
set -u
export COMPOSE_PROJECT_NAME=nets COMPOSE_HTTP_TIMEOUT=60
said() { echo "## $*"; }
compose() { docker-compose --no-ansi "$@" 2>/dev/null; }
inside() { compose exec -T "$@" </dev/null; }
# The addresses that a name has for a service, without the server's own.
names() { docker exec "nets_$1_1" nslookup -type=a "$2" 127.0.0.11 2>/dev/null | sed -n '/^Name/,$p' | sed -n 's/^Address.*: *//p' | sort; }

said without what is external
compose up -d; echo "code $?"
docker volume create kept-data; docker network create --subnet 10.77.42.0/24 shared-net | wc -l
said up
compose up -d; echo "code $?"
for name in db cache app edge probe; do docker inspect -f '{{.Name}} {{.State.Status}} {{range $k, $v := .NetworkSettings.Networks}}{{$k}} {{end}}' nets_${name}_1; done
docker inspect -f '{{range $k, $v := .NetworkSettings.Networks}}{{$k}} {{$v.IPAddress}}/{{$v.IPPrefixLen}}; {{end}}' nets_app_1
docker inspect -f '{{range $k, $v := .NetworkSettings.Networks}}gateway of app on {{$k}}: {{$v.Gateway}}{{"\n"}}{{end}}' nets_app_1
docker inspect -f '{{range $k, $v := .NetworkSettings.Networks}}{{json $v.IPAMConfig}} {{end}}' nets_app_1
docker inspect -f '{{with index .NetworkSettings.Networks "nets_back"}}{{.IPAddress}}{{end}}' nets_db_1
docker network inspect -f '{{.Name}} {{.Internal}} {{index .Labels "tier"}} {{range .IPAM.Config}}{{.Subnet}} {{.IPRange}}{{end}} {{len .Containers}}' nets_front nets_back shared-net
docker network inspect -f 'gateway of {{.Name}}: {{range .IPAM.Config}}{{.Gateway}}{{end}}' nets_front nets_back shared-net
said names
for name in db database storage app backend cache nowhere; do echo "edge $name" $(names edge $name); echo "app $name" $(names app $name); done
names app shared | wc -l
inside app cat /etc/resolv.conf | grep -E '^(nameserver|search)'
inside app grep legacy /etc/hosts
said reach
inside app wget -q -O - http://storage:5432/index.html; echo "code $?"
inside edge wget -q -O - http://backend:8080/index.html; echo "code $?"
inside probe wget -q -O - http://backend:8080/index.html; echo "code $?"
inside edge ping -c 1 -W 1 10.77.41.10 >/dev/null 2>&1; echo "front to back: code $?"
inside db ip route | grep -c default
inside app ip route | grep default | cut -d' ' -f1-3
inside db ip link show eth0 | grep -o 'mtu [0-9]*'
docker exec nets_probe_1 hostname | cmp -s - <(docker exec nets_edge_1 hostname) && echo "same host name"
said ports
docker port nets_app_1 | grep -v '\[::\]' | grep -v ':::' | sort
compose port app 9003; compose port --protocol udp app 8080 | cut -d: -f2
docker inspect -f '{{range $k, $v := .Config.ExposedPorts}}{{$k}} {{end}}' nets_app_1
said changes
docker network disconnect nets_front nets_edge_1; echo "edge backend" $(names edge backend)
docker network connect --ip 10.77.40.77 --alias again nets_front nets_edge_1; names app again
compose up -d --scale cache=3 >/dev/null; names app shared | wc -l; names app cache | wc -l
compose up -d --scale cache=1 >/dev/null; names app cache | wc -l
compose up -d --force-recreate --no-deps app >/dev/null; echo "code $?"; names edge backend
compose restart -t 0 db; docker inspect -f '{{with index .NetworkSettings.Networks "nets_back"}}{{.IPAddress}}{{end}}' nets_db_1
docker run -d --name late --network nets_back --ip 10.77.41.10 busybox true >/dev/null 2>&1; echo "a taken address: code $?"; docker rm late
docker network rm nets_front >/dev/null 2>&1; echo "a network in use: code $?"
said down
compose down -v -t 0; echo "code $?"
docker ps -aq | wc -l
docker network ls --filter type=custom --format '{{.Name}}'
docker volume ls --format '{{.Name}}'
docker run --rm -v kept-data:/kept busybox cat /kept/www/index.html
docker volume rm kept-data; docker network rm shared-net
