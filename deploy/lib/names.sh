# shellcheck shell=sh
# Made by python -m tools.shellgen from the calls of `given`, `setting` and `remember` in deploy/.

# Prints the name of each variable that is looked up, with its default if that is looked up too.
known_settings() {
    printf '%s\n' \
        COMPOSE_FILE \
        COMPOSE_PROJECT_NAME \
        RUSTICL_ENABLE \
        VRAMBLK_BASE=debian:trixie-slim \
        VRAMBLK_DEVICE \
        VRAMBLK_EXPORTER_PORT=10811 \
        VRAMBLK_EXPORT_NAME=vram \
        VRAMBLK_GRAFANA_PORT=3000 \
        VRAMBLK_IMAGE=vramblk:latest \
        VRAMBLK_LISTEN_ADDR \
        VRAMBLK_METRICS_PORT=10810 \
        VRAMBLK_METRICS_TOKEN \
        VRAMBLK_METRICS_TOKEN_FILE \
        VRAMBLK_MODE \
        VRAMBLK_MONITORING_TOKEN_PATH \
        VRAMBLK_NBD_PORT=10809 \
        VRAMBLK_PROMETHEUS_PORT=9090 \
        VRAMBLK_RENDER_GID \
        VRAMBLK_RUN_DIR=/run/vramblk \
        VRAMBLK_TLS \
        VRAMBLK_TLS_DIR=./tls \
        VRAMBLK_TLS_VERIFY_PEER \
        VRAMBLK_UP_TIMEOUT=120 \
        VRAMBLK_VIDEO_GID
}
