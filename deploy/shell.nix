# A shell in which ./start-dev and ./start-dev test work: nix-shell deploy/shell.nix
#
# The libraries of Python come from PyPI, as everywhere: start-dev makes .venv of them. From here come Python, what their binaries
# link to, and the programs that the tests agree with.
{ pkgs ? import <nixpkgs> { } }:

pkgs.mkShell {
  packages = with pkgs; [
    python313
    uv
    git
    nix
    nginx
    curl
    nodejs
    xz
    zstd
    bzip2
    gzip
    brotli
    lz4
    lzip
    libarchive
    unzip
  ];

  env = {
    # Wheels look for the C++ library where other systems have it; and uv is to use this Python, not to bring its own.
    LD_LIBRARY_PATH = pkgs.lib.makeLibraryPath [ pkgs.stdenv.cc.cc.lib pkgs.zlib ];
    UV_PYTHON_DOWNLOADS = "never";
  };
}
