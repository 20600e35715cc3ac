//! nginx with the nchan module as a child: a worker for each core, all in a directory of its own.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::http;
use super::listening::{Listening, free_address};
use super::process::make_dir;
use crate::Error;

/// Where distributions put the module.
const MODULES: [&str; 3] = [
    "/usr/lib/nginx/modules/ngx_nchan_module.so",
    "/usr/lib64/nginx/modules/ngx_nchan_module.so",
    "/usr/share/nginx/modules/ngx_nchan_module.so",
];

/// What to do where it, or its module, is not installed.
#[must_use]
pub fn missing() -> Option<Error> {
    module().err()
}

/// Starts it for so many clients.
///
/// # Errors
/// It or the module is not installed, or does not start.
pub async fn start(clients: usize) -> Result<Listening, Error> {
    let module = module()?;
    let (dir, address) = (make_dir()?, free_address()?);
    let file = dir.join("nginx.conf");
    std::fs::write(&file, config(&dir, &module, address, clients))
        .map_err(Error::of(&format!("cannot write {}", file.display())))?;
    let mut command = Command::new("nginx");
    command.arg("-p").arg(&*dir).arg("-c").arg(&file).arg("-e").arg(dir.join("errors"));
    Listening::start("nginx", dir, &command, address).await
}

/// Clients that wait.
///
/// # Errors
/// It does not answer.
pub async fn subscribers(nginx: SocketAddr) -> Result<u64, Error> {
    let (_, text) = http::get(nginx, "/status").await.map_err(Error::of("ask nchan for its status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("subscribers:"));
    Ok(line.and_then(|number| number.trim().parse().ok()).unwrap_or(0))
}

fn module() -> Result<PathBuf, Error> {
    let module = MODULES.iter().map(PathBuf::from).find(|path| path.exists());
    module.filter(|_| super::installed("nginx")).ok_or_else(|| {
        Error::missing("nginx with the module nchan is not installed; run scripts/setup --bench")
    })
}

fn config(dir: &Path, module: &Path, address: SocketAddr, clients: usize) -> String {
    let (dir, module) = (dir.display(), module.display());
    let files = clients + 1000;
    // As root, workers would become another user, who may not enter the directory.
    let user = if is_root() { "user root;" } else { "" };
    format!(
        "{user}
load_module {module};
daemon off;
worker_processes auto;
worker_rlimit_nofile {files};
pid {dir}/pid;
error_log {dir}/errors crit;
events {{ worker_connections {files}; }}
http {{
    access_log off;
    client_body_temp_path {dir}/body;
    proxy_temp_path {dir}/proxy;
    fastcgi_temp_path {dir}/fastcgi;
    uwsgi_temp_path {dir}/uwsgi;
    scgi_temp_path {dir}/scgi;
    keepalive_requests 100000000;
    keepalive_timeout 1h;
    nchan_shared_memory_size 512M;
    server {{
        listen {address} backlog=4096;
        location = /sub {{
            nchan_subscriber websocket eventsource;
            nchan_channel_id $arg_id;
            nchan_subscriber_first_message newest;
        }}
        location = /pub {{
            nchan_publisher;
            nchan_channel_id $arg_id;
            nchan_message_buffer_length 10000;
            nchan_message_timeout 60s;
        }}
        location = /status {{ nchan_stub_status; }}
    }}
}}
"
    )
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|meta| std::os::unix::fs::MetadataExt::uid(&meta) == 0)
}
