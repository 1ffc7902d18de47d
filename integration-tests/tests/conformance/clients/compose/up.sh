# docker-compose of Debian with an application of three services. What it prints is compared between engines.
set -u
export COMPOSE_PROJECT_NAME=shop COMPOSE_HTTP_TIMEOUT=60
said() { echo "## $*"; }
compose() { docker-compose --no-ansi "$@" 2>/dev/null; }

said up
compose config -q; echo "code $?"
compose up -d; echo "code $?"
compose ps -q | wc -l
for name in db app web; do docker inspect -f '{{index .Config.Labels "com.docker.compose.service"}} {{.State.Status}} {{range $k, $v := .NetworkSettings.Networks}}{{$k}} {{end}}' shop_${name}_1; done
docker inspect -f '{{.State.Health.Status}}' shop_db_1
docker network ls --filter label=com.docker.compose.project=shop --format '{{.Name}} {{.Driver}}' | sort
docker volume ls --filter label=com.docker.compose.project=shop --format '{{.Name}}'
for _ in $(seq 50); do compose logs --no-color web | grep -q hello && break; sleep 0.2; done
compose logs --no-color web | grep -v Attaching | tr -s ' '
compose exec -T app sh -c 'cat /conf/file; ls /shared; echo $STAGE; touch /shared/x 2>/dev/null || echo read-only'; echo "code $?"
compose port web 80 | cut -d: -f1
compose top db | grep -c 'db starts'
said run
compose run --rm -T app echo one-off; echo "code $?"
said scale
compose up -d --scale app=2 --no-recreate >/dev/null; compose ps -q app | wc -l
compose up -d --scale app=1 >/dev/null; compose ps -q app | wc -l
said recreate
before=$(docker inspect -f '{{.Id}}' shop_app_1); compose up -d --force-recreate --no-deps app >/dev/null; echo "code $?"
[ "$before" != "$(docker inspect -f '{{.Id}}' shop_app_1)" ] && echo recreated
compose exec -T web wget -q -O - http://backend:8080/index.html
said restart
compose restart -t 1 web; echo "code $?"; compose pause db; compose unpause db
compose stop -t 1; docker ps -q --filter label=com.docker.compose.project=shop | wc -l
compose start >/dev/null; echo "code $?"; docker ps -q --filter label=com.docker.compose.project=shop | wc -l
compose kill app >/dev/null; compose rm -f app >/dev/null; compose ps -q app | wc -l
said down
compose down -v -t 1; echo "code $?"
docker ps -aq --filter label=com.docker.compose.project=shop | wc -l
docker network ls -q --filter label=com.docker.compose.project=shop | wc -l
docker volume ls -q --filter label=com.docker.compose.project=shop | wc -l
