/** `moefleet config explain`: where each value of a device comes from. */
import type { Command } from 'commander';
import { type ExplainConfigResponse, type OverriddenLayer, SpecState } from '@moefleet/proto';
import { addCommonOptions } from '../config';
import type { Context } from '../context';
import { deviceJson, endText, layerName } from '../device-view';
import { type JsonValue, jsonText, toJson } from '../json-text';
import { addOperatorGroup } from '../operator-command';
import { table } from '../table';

type JsonObject = { [key: string]: JsonValue };

export function addConfig(program: Command, context: Context): void {
  addOperatorGroup(program, context, 'config', 'what devices are asked to run', (config, action) => {
    const explain = config.command('explain')
      .description('every value of a device: asked for, in force, the layer it comes from, and the layers that did not win and why')
      .argument('<device>', 'device id')
      .addHelpText('after', `
The first that is set wins: kill switch, pin on the device, on a group it belongs to (the newest), on the fleet, the
learner's value, the default. A pin that was set for a time (--for) says when it ends. Limits of the device itself clamp last; where they do, the last column says so.

Examples:
  moefleet config explain phone-1
  moefleet config explain phone-1 --json
`);
    addCommonOptions(explain, { operator: true }).action(action(async ({ operator, json, out, args }) => {
      const answer = await operator.explainConfig(args[0]!);
      out(json ? jsonText({ device: args[0]!, fields: explained(answer) }) : explainText(answer, Date.now()));
    }));
  });
}

function explained({ device, fields }: ExplainConfigResponse): JsonObject[] {
  const { desired, reported } = (device ? deviceJson(device) : {}) as { desired?: JsonObject | null; reported?: { effective?: JsonObject | null } | null };
  return fields.map(({ source, overridden }) => {
    const field = source?.field ?? '';
    const name = field.replace(/_([a-z])/g, (_, letter: string) => letter.toUpperCase());
    const adjustment = device?.reported?.adjustments.find((one) => one.field === field);
    return {
      field, desired: desired?.[name] ?? null, inForce: reported?.effective?.[name] ?? null,
      layer: source ? layerName(source.layer) : '', detail: source?.detail ?? '', expiresMs: toJson(source?.expiresMs ?? null),
      overridden: overridden.map((layer) => toJson({ ...layer, layer: layerName(layer.layer), value: JSON.parse(layer.value) as unknown, expiresMs: layer.expiresMs ?? null })),
      adjustment: adjustment ? toJson(adjustment) : null,
    };
  });
}

function explainText(answer: ExplainConfigResponse, nowMs: number): string {
  const fields = explained(answer);
  const { device } = answer;
  const failed = device?.reported?.state === SpecState.SPEC_STATE_FAILED ? `the device refused it: ${device.reported.reason}\n` : '';
  const values = table(['VALUE', 'DESIRED', 'IN FORCE', 'FROM', 'CLAMPED BY THE DEVICE'], fields.map((one, at) => [
    String(one['field']), shown(one['desired']), shown(one['inForce']), layerWords(String(one['layer']), String(one['detail']), endText(answer.fields[at]!.source?.expiresMs, nowMs)),
    one['adjustment'] ? String((one['adjustment'] as JsonObject)['reason']) : '',
  ]));
  const layers = answer.fields.flatMap(({ source, overridden }) => overridden.map((layer: OverriddenLayer) => [
    source?.field ?? '', layerWords(layerName(layer.layer), layer.detail, endText(layer.expiresMs, nowMs)), layer.value, layer.why,
  ]));
  return `${failed}${values}${layers.length > 0 ? `\n${table(['VALUE', 'OVERRIDDEN', 'IT SAYS', 'WHY NOT'], layers)}` : ''}`;
}

function layerWords(layer: string, detail: string, ends: string): string {
  const name = `${layer.toLowerCase().replace('_', ' ')}${ends}`;
  return detail ? `${name}: ${detail}` : name;
}

function shown(value: JsonValue | undefined): string {
  return value === null || value === undefined ? '-' : typeof value === 'string' ? value : JSON.stringify(value);
}
