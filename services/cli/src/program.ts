/** The tree of commands. */
import { Command } from 'commander';
import { VERSION } from '@moefleet/runtime';
import { addAgentReleases } from './commands/agent-releases';
import { addAudit } from './commands/audit';
import { addCache, addLambda, addTracing } from './commands/change';
import { addEviction, addRouting } from './commands/change-routing';
import { addConfig } from './commands/config';
import { addDeploy } from './commands/deploy';
import { addDeviceIdentity } from './commands/device-identity';
import { addDevices } from './commands/devices';
import { addDevicesWatch } from './commands/devices-watch';
import { addDoctor } from './commands/doctor';
import { addEngine } from './commands/engine';
import { addEngineBench } from './commands/engine-bench';
import { addFleet } from './commands/fleet';
import { addFleetStatus } from './commands/fleet-status';
import { addLabel } from './commands/label';
import { addLearnerQueries } from './commands/learner';
import { addLearnerExplain } from './commands/learner-explain';
import { addMeasure } from './commands/measure';
import { addModel } from './commands/model';
import { addOperators } from './commands/operator';
import { addReplay } from './commands/replay';
import { addRollout } from './commands/rollout';
import { addRun } from './commands/run-program';
import { addSupportBundle } from './commands/support-bundle';
import { addTokens } from './commands/token';
import { addTrace } from './commands/trace';
import { addWindows } from './commands/windows';
import { addUndeploy } from './commands/undeploy';
import { addCommonOptions } from './config';
import type { Context } from './context';

const HELP = `
Deploy agents to devices:
  moefleet coordinator run                                   (needs Redis; see --redis-url)
  moefleet deploy ssh pi@board-1 --model model.gguf --coordinator HOST:7400
  moefleet agent run --model model.gguf --id phone-1 --max-cache 512MiB --coordinator HOST:7400      (by hand, on a device)
  moefleet devices

Adjust λ, the pull of a device's routing towards the experts it holds in memory:
  moefleet lambda set 0.25 --all
  moefleet lambda auto --all                                 (back to the learner: moefleet learner run)
  moefleet lambda set 0.25 --all --stages 1,25%,100% --gate 'perplexityLoss<1%'
  moefleet lambda off --why "answers look wrong"             (kill switch; release it with: moefleet lambda on)

See every flash miss as a span in Jaeger:
  moefleet trace phone-1

Study a model on this machine:
  moefleet engine inspect --model model.gguf
  moefleet engine eval --model model.gguf --text unseen.txt --lambda 0.3 --capacity 16 --compare
  moefleet engine simulate --routes phone.route.csv --capacity 16,32,64
  moefleet replay --trace run.windows --lambda 0,0.1,0.2 --capacity 8:32:4

Exit codes: 0 done; 1 failed; 2 bad input; 3 only offline devices are missing; 130 interrupted.
Environment: MOEFLEET_OPERATOR (coordinator), MOEFLEET_CA (its fleet's ca.pem), MOEFLEET_LOG_LEVEL (debug prints stack traces).
`;

export function buildProgram(context: Context): Command {
  const program = new Command('moefleet')
    .description('fleets of edge devices that run Mixture-of-Experts models larger than their memory')
    .version(VERSION)
    .enablePositionalOptions()
    .exitOverride()
    .configureOutput({
      writeOut: (text) => void context.stdout.write(text),
      writeErr: (text) => void context.stderr.write(text),
      outputError: (text, write) => write(`moefleet: ${text.trim().replace(/^error: /, '').replace(/\s*\n\s*/g, ' ')}; see --help\n`),
    })
    .addHelpText('after', HELP);
  addCommonOptions(program, { operator: true });

  addDeploy(program, context);
  addUndeploy(program, context);
  addDoctor(program, context);
  addSupportBundle(program, context);
  addFleet(program, context);
  addDevices(program, context);
  addDevicesWatch(program, context);
  addDeviceIdentity(program, context);
  addFleetStatus(program, context);
  addTokens(program, context);
  addLambda(program, context);
  addRouting(program, context);
  addEviction(program, context);
  addCache(program, context);
  addRollout(program, context);
  addTrace(program, context);
  addMeasure(program, context);
  addTracing(program, context);
  addWindows(program, context);
  addConfig(program, context);
  addLabel(program, context);
  addAudit(program, context);
  addOperators(program, context);

  const learner = program.command('learner').description('what measures a model\'s quality and proposes λ and cache sizes');
  addLearnerQueries(learner, context);
  addLearnerExplain(learner, context);
  addRun(learner, context, 'run a learner', '--model model.gguf --text unseen.txt', async () => {
    const { SETTINGS, runLearner } = await import('@moefleet/learner/main');
    return { settings: SETTINGS, run: runLearner };
  });
  addRun(program.command('coordinator').description('what devices connect to'), context, 'run a coordinator', '--redis-url redis://127.0.0.1:6379', async () => {
    const { SETTINGS, runCoordinator } = await import('@moefleet/coordinator/main');
    return { settings: SETTINGS, run: runCoordinator };
  });
  const agent = program.command('agent').description('what runs a model on a device');
  addAgentReleases(agent, context);
  addRun(agent, context, 'run an agent', '--id phone-1 --model model.gguf --max-cache 512MiB', async () => {
    const { SETTINGS, runAgent } = await import('@moefleet/edge-agent/main');
    return { settings: SETTINGS, run: runAgent };
  });

  addEngineBench(addEngine(program, context), context);
  addModel(program, context);
  addReplay(program, context);
  return program;
}
