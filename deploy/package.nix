# nar-serve as a Nix package, with all that a server of one's own can use: pkgs.callPackage ./deploy/package.nix { }
{ lib, python3Packages }:

let
  project = (builtins.fromTOML (builtins.readFile ../pyproject.toml)).project;

  root = toString ../.;
  wanted = [ "api" "narcore" "narmount" "narserve" "pyproject.toml" "README.md" "LICENSE" ];
in
python3Packages.buildPythonApplication {
  pname = project.name;
  inherit (project) version;
  pyproject = true;

  # What the package is built of, and nothing else: a change of a test builds nothing anew.
  src = builtins.path {
    name = "nar-serve-source";
    path = ../.;
    filter = path: type:
      let top = builtins.head (lib.splitString "/" (lib.removePrefix "${root}/" path));
      in builtins.elem top wanted && baseNameOf path != "__pycache__";
  };

  build-system = [ python3Packages.hatchling ];

  # By the names that pyproject.toml has for them, which are nixpkgs' too.
  dependencies =
    let
      extras = project.optional-dependencies;
      requirements = project.dependencies
        ++ extras.server ++ extras.metrics ++ extras.objectstore ++ extras.isal ++ extras.lz4;
      nameOf = requirement: builtins.head (builtins.match "([A-Za-z0-9._-]+).*" requirement);
    in
    map (requirement: python3Packages.${nameOf requirement}) requirements;

  # The tests write binary caches with Nix and serve them over loopback: ./start-dev test runs them.
  doCheck = false;
  pythonImportsCheck = [ "narserve.server.master" "narcore" ];

  meta = {
    inherit (project) description;
    license = lib.licenses.asl20;
    mainProgram = "nar-serve";
  };
}
