//! `bindgen IN.wasm DIR`: what `wasm-bindgen --target web --no-typescript` writes.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(input), Some(folder)) = (arguments.next(), arguments.next()) else {
        return Err("usage: bindgen IN.wasm DIR".into());
    };
    let mut bindgen = wasm_bindgen_cli_support::Bindgen::new();
    bindgen.input_path(input).web(true)?.typescript(false);
    bindgen.omit_default_module_path(false);
    Ok(bindgen.generate(folder)?)
}
