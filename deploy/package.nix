# nar-serve as a Nix package, with the optional dependencies of a server. Use: pkgs.callPackage ./deploy/package.nix { }
{ lib, python3Packages }:

let
  project = (builtins.fromTOML (builtins.readFile ../pyproject.toml)).project;

  root = toString ../.;
  included = [ "api" "narcore" "narmount" "narserve" "pyproject.toml" "README.md" "LICENSE" ];
in
python3Packages.buildPythonApplication {
  pname = project.name;
  inherit (project) version;
  pyproject = true;

  # The source has only the files that the package contains, so that a changed test does not cause a rebuild.
  src = builtins.path {
    name = "nar-serve-source";
    path = ../.;
    filter = path: type:
      let top = builtins.head (lib.splitString "/" (lib.removePrefix "${root}/" path));
      in builtins.elem top included && baseNameOf path != "__pycache__";
  };

  build-system = [ python3Packages.hatchling ];

  # The package names in pyproject.toml are the same as in nixpkgs.
  dependencies =
    let
      extras = project.optional-dependencies;
      requirements = project.dependencies
        ++ extras.server ++ extras.metrics ++ extras.objectstore ++ extras.isal ++ extras.lz4;
      nameOf = requirement: builtins.head (builtins.match "([A-Za-z0-9._-]+).*" requirement);
    in
    map (requirement: python3Packages.${nameOf requirement}) requirements;

  # The tests need Nix and a network interface, which the build sandbox does not have. Run them with ./start-dev test.
  doCheck = false;
  pythonImportsCheck = [ "narserve.server.master" "narcore" ];

  meta = {
    inherit (project) description;
    license = lib.licenses.asl20;
    mainProgram = "nar-serve";
  };
}
