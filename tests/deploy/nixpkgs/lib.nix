# A small part of lib and of the module system: one module, options with defaults and types, and mkIf. No merging, no submodules.
let
  fail = path: value: throw "option ${builtins.concatStringsSep "." path} has a value of the wrong type: ${builtins.toJSON value}";

  # Replaces each option in a nested set by its value in `given`, or by its default.
  valuesOf = path: options: given:
    builtins.mapAttrs
      (name: option:
        let at = path ++ [ name ];
        in if option._type or "" == "option"
           then let value = given.${name} or (option.default or (throw "option ${name} is not set"));
                in if option.type.check value then value else fail at value
           else valuesOf at option (given.${name} or { }))
      options;

  # Throws an error for a value of an option that does not exist.
  checkNames = path: options: given:
    builtins.all
      (name:
        if !(options ? ${name}) then throw "no such option: ${builtins.concatStringsSep "." (path ++ [ name ])}"
        else options.${name}._type or "" == "option" || checkNames (path ++ [ name ]) options.${name} given.${name})
      (builtins.attrNames given);

  # Resolves the mkIfs in a configuration.
  settle = value:
    if builtins.isAttrs value && value._type or "" == "if" then (if value.condition then settle value.content else null)
    else if builtins.isAttrs value && value.type or "" != "derivation" then builtins.mapAttrs (_: settle) value
    else value;
in
rec {
  genAttrs = names: f: builtins.listToAttrs (map (name: { inherit name; value = f name; }) names);
  hasInfix = infix: text: builtins.length (builtins.split infix text) > 1;
  removePrefix = prefix: text:
    let length = builtins.stringLength prefix;
    in if builtins.substring 0 length text == prefix then builtins.substring length (-1) text else text;
  splitString = separator: text: builtins.filter builtins.isString (builtins.split separator text);
  concatStringsSep = builtins.concatStringsSep;
  optionalAttrs = condition: set: if condition then set else { };
  mapAttrs = builtins.mapAttrs;
  makeLibraryPath = paths: concatStringsSep ":" (map (path: "${path}/lib") paths);
  licenses.asl20.spdxId = "Apache-2.0";

  mkOption = option: option // { _type = "option"; };
  mkEnableOption = what: mkOption { type = types.bool; default = false; description = "Whether to enable ${what}."; };
  mkIf = condition: content: { _type = "if"; inherit condition content; };
  literalExpression = text: { _type = "literalExpression"; inherit text; };

  types = rec {
    bool.check = builtins.isBool;
    str.check = builtins.isString;
    path.check = value: builtins.isPath value || builtins.substring 0 1 value == "/";
    port.check = value: builtins.isInt value && value >= 0 && value <= 65535;
    package.check = value: value.type or "" == "derivation";
    listOf = type: { check = value: builtins.isList value && builtins.all type.check value; };
    attrsOf = type: { check = value: builtins.isAttrs value && builtins.all type.check (builtins.attrValues value); };
    nullOr = type: { check = value: value == null || type.check value; };
  };

  evalModule = module: pkgs: given:
    let
      made = module { inherit pkgs config; lib = pkgs.lib; };
      config = valuesOf [ ] made.options given;
    in
    assert checkNames [ ] made.options given;
    { inherit (made) options; config = settle made.config; };
}
