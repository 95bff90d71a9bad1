/** `moefleet trace ID`: where to look at a device's latest request, token by token and read by read. */
import type { Command } from 'commander';
import { addCommonOptions } from '../config';
import type { Context } from '../context';
import { Failure } from '../failure';
import { jsonText } from '../json-text';
import { operatorAction } from '../operator-command';

export function addTrace(program: Command, context: Context): void {
  const command = program.command('trace')
    .description('the address of a device\'s latest trace in Jaeger')
    .argument('<id>', 'device id')
    .addHelpText('after', '\nExample:\n  xdg-open "$(moefleet trace phone-1)"\n');
  addCommonOptions(command, { operator: true }).action(operatorAction(context)(async ({ operator, json, out, args }) => {
    const device = await operator.getDevice(args[0]!);
    const latest = device.telemetry?.lastTrace;
    if (!device.traceUrl) {
      throw new Failure(latest?.traceIds.length
        ? `${device.id}: its latest trace is ${latest.traceIds[0]}, but the coordinator does not know where Jaeger is; start it with --jaeger-url http://HOST:16686`
        : `${device.id}: no trace yet; start its agent with --otlp-endpoint (moefleet tracing set 1 --device ${device.id} where tracing is off), then send it a request`);
    }
    out(json
      ? jsonText({ id: device.id, url: device.traceUrl, traceIds: latest?.traceIds ?? [], requestId: latest?.requestId ?? null, misses: latest?.misses ?? null, timeMs: latest?.timeMs ?? null })
      : `${device.traceUrl}\n`);
  }));
}
