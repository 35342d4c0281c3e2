# shellcheck shell=sh
# The GPU of this host. The tests set VRAMBLK_HOST_ROOT to use the files of another root directory.

# Prints the compose file for this host's GPU and the vendor; `- none` without a GPU.
find_gpu() {
    if [ -e "${VRAMBLK_HOST_ROOT-}/dev/nvidiactl" ] || { command -v nvidia-smi && nvidia-smi -L; } >/dev/null 2>&1; then
        if command -v nvidia-container-runtime-hook >/dev/null 2>&1; then
            echo 'compose.nvidia.yaml NVIDIA'
        elif docker info --format '{{json .Runtimes}}' | grep -q '"nvidia"'; then
            echo 'compose.nvidia-runtime.yaml NVIDIA'
        else
            fail 78 'there is an NVIDIA GPU, but Docker cannot pass it on; type: sudo apt-get install' \
                'nvidia-container-toolkit && sudo nvidia-ctk runtime configure && sudo systemctl restart docker'
        fi
    elif [ -e "${VRAMBLK_HOST_ROOT-}/dev/kfd" ]; then
        echo 'compose.rocm.yaml AMD'
    elif drm_vendor 0x8086; then
        echo 'compose.intel.yaml Intel'
    elif drm_vendor 0x1002; then
        echo 'compose.intel.yaml AMD (without /dev/kfd)'
    else
        echo '- none'
    fi
}

# Does a render node belong to the PCI vendor $1?
drm_vendor() { cat "${VRAMBLK_HOST_ROOT-}"/sys/class/drm/renderD*/device/vendor 2>/dev/null | grep -qx "$1"; }

# Sets what the compose file $1 for vendor $2 requires: the groups of the device files, and Mesa's driver.
remember_device() {
    case $1 in
        compose.rocm.yaml)
            remember VRAMBLK_RENDER_GID "$(group_of "${VRAMBLK_HOST_ROOT-}/dev/kfd")"
            remember VRAMBLK_VIDEO_GID "$(group_of "${VRAMBLK_HOST_ROOT-}"/dev/dri/card*)"
            ;;
        compose.intel.yaml)
            remember VRAMBLK_RENDER_GID "$(group_of "${VRAMBLK_HOST_ROOT-}"/dev/dri/renderD*)"
            case $2 in
                AMD*) remember RUSTICL_ENABLE radeonsi ;;
                *) remember RUSTICL_ENABLE iris ;;
            esac
            ;;
    esac
}

# group_of FILE...: prints the number of the first existing file's group, 0 if there is none.
group_of() {
    for node in "$@"; do
        if [ -e "$node" ]; then
            stat -c %g "$node"
            return 0
        fi
    done
    echo 0
}
