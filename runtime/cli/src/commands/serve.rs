//! `brolly serve`: a model behind OpenAI's API.

use std::{fs, net::SocketAddr, path::Path, time::Duration};

use serve::{
    Engine, EngineOptions,
    http::{self, ServerOptions},
};

use crate::{
    args::Serve,
    context::Context,
    failure::{Failure, Result},
    output,
    plan::PINNED,
    session::failure,
    source, table,
};

pub(crate) fn serve(args: &Serve, cx: &Context) -> Result<()> {
    let server = server_options(args)?;
    let engine_options = EngineOptions {
        gpu: cx.gpu(),
        threads: Some(cx.threads()),
        kv_cache_bytes: args.kv_cache,
        max_num_seqs: args.max_num_seqs,
        max_num_batched_tokens: args.max_num_batched_tokens,
        prefill_chunk: args.prefill_chunk,
        max_queue: args.max_queue,
        prefix_cache: !args.no_prefix_cache,
        trace: cx.trace().cloned(),
        ..EngineOptions::default()
    };
    let engine =
        Engine::start(source::open(&args.source, cx)?, &engine_options).map_err(failure)?;
    output::tell(&format!("{}\n", reserved(&engine)));
    let is_open = server.api_keys.is_empty() && !is_local(&server.host);
    if is_open {
        output::tell(
            "every network can use this server, and no key is asked for: give --api-key-file\n",
        );
    }
    let scheme = if server.tls.is_some() { "https" } else { "http" };
    let on_ready = |address: SocketAddr| {
        output::tell(&format!("serving at {scheme}://{address}\n"));
    };
    http::serve(engine, server, on_ready).map_err(failure)
}

fn server_options(args: &Serve) -> Result<ServerOptions> {
    let mut api_keys = args.api_key.clone();
    if let Some(file) = &args.api_key_file {
        let text = read("--api-key-file", file)?;
        let lines = text.lines().map(str::trim);
        let keys = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
        let before = api_keys.len();
        api_keys.extend(keys.map(str::to_owned));
        if api_keys.len() == before {
            let file = file.display();
            return Err(Failure::input(format!("--api-key-file {file}: holds no key")));
        }
    }
    let mut served_model_names = args.served_model_name.clone();
    if served_model_names.is_empty() {
        let stem = args.source.path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
        served_model_names.extend(stem);
    }
    let chat_template = args.chat_template.as_deref();
    Ok(ServerOptions {
        host: args.host.clone(),
        port: args.port,
        api_keys,
        tls: args.tls_cert.clone().zip(args.tls_key.clone()),
        request_timeout: Duration::from_secs(args.request_timeout),
        served_model_names,
        chat_template: chat_template.map(|file| read("--chat-template", file)).transpose()?,
        ..ServerOptions::default()
    })
}

/// What was reserved, in a line.
fn reserved(engine: &Engine) -> String {
    let memory = engine.memory();
    let total = table::bytes(memory.total());
    let weights = table::bytes(memory.weight_bytes);
    let pinned = match memory.pinned_bytes {
        0 => String::new(),
        bytes => format!("; {} {PINNED}", table::bytes(bytes)),
    };
    match engine.limits() {
        Some(limits) => format!(
            "{total} reserved: weights {weights}, keys and values {} for {} tokens{pinned}",
            table::bytes(memory.state_bytes),
            limits.positions()
        ),
        None => format!("{total} reserved: weights {weights}{pinned}"),
    }
}

fn is_local(host: &str) -> bool {
    host == "localhost" || host.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback())
}

fn read(flag: &str, file: &Path) -> Result<String> {
    fs::read_to_string(file)
        .map_err(|e| Failure::input(format!("{flag} {}: cannot be read: {e}", file.display())))
}
