'use strict';

// A plugin for osls (a fork of the Serverless Framework). It makes the package with build.py, so "npx osls deploy" is the only command
// needed.

const { spawnSync } = require('child_process');
const path = require('path');

module.exports = class BuildPackage {
  constructor(serverless) {
    const build = () => this.build(serverless);
    this.hooks = {
      'before:package:createDeploymentArtifacts': build,
      'before:package:function:package': build,
    };
  }

  build(serverless) {
    const { service, serviceDir } = serverless;
    const { runtime, architecture } = service.provider;
    const script = path.join(serviceDir, 'deploy', 'lambda', 'build.py');
    const output = path.join(serviceDir, service.package.artifact);
    const options = ['--python', runtime.replace('python', ''), '--architecture', architecture, '--output', output];
    const { status, error } = spawnSync(process.env.PYTHON || 'python3', [script, ...options], { stdio: 'inherit' });
    if (error || status !== 0) throw new Error(`build.py failed: ${error || `status ${status}`}`);
  }
};
