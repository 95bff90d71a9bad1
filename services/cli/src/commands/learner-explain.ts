/** `moefleet learner explain`: why a device got its λ and its capacities. */
import type { Command } from 'commander';
import { addCommonOptions } from '../config';
import type { Context } from '../context';
import { Failure } from '../failure';
import { jsonText } from '../json-text';
import { explain } from '../learner/explanation';
import { explanationSvg } from '../learner/explanation-plot';
import { explanationText } from '../learner/explanation-text';
import { operatorAction } from '../operator-command';
import { writeFileOver } from '../text-file';

export function addLearnerExplain(learner: Command, context: Context): void {
  const command = learner.command('explain')
    .description('why a device got its λ, topJ and capacities: what the choice rests on, what bound it, predicted against observed')
    .argument('<device>', 'device id')
    .option('--svg <file>', 'write what λ costs, the budget and the point chosen as a plot')
    .addHelpText('after', `
The learner takes the setting with the most predicted tokens per second whose quality loss, at its upper bound, stays within the
budget and whose bytes the device has shown it can spare. Speed is predicted as compute + reading x MiB missed per token.
Drift of routing says what has changed since λ was chosen: another model, another workload (tokens want other experts), λ itself
(tokens get others than they want), or lock-in (swaps rise, misses do not fall). Where the device loses more softmax mass than
any text that was measured, λ is held back at once, and the setting is measured anew.

Examples:
  moefleet learner explain phone-1
  moefleet learner explain phone-1 --svg phone-1.svg
  moefleet learner explain phone-1 --json | jq .chosen
  moefleet learner explain phone-1 --json | jq .routing
`);
  addCommonOptions(command, { operator: true }).action(operatorAction(context)(async ({ operator, json, out, note, args, options }) => {
    const explanation = explain(await operator.explainLearner(args[0]!));
    const path = options['svg'] as string | undefined;
    if (path !== undefined) {
      const svg = explanationSvg(explanation);
      if (svg === null) throw new Failure(`--svg: nothing has been measured for ${args[0]!} yet; see: moefleet learner explain ${args[0]!}`);
      writeFileOver('--svg', path, svg);
      note(`${path}: ${explanation.measured.length} measured settings\n`);
      if (!json) return;
    }
    out(json ? jsonText(explanation) : explanationText(explanation, Date.now()));
  }));
}
