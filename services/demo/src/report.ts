/** The demo's result: as JSON for programs, as a table for people. */
import Table from 'cli-table3';

export interface Condition {
  lambda: number;
  topJ: number;
  /** experts of one MoE layer, the mean over layers */
  capacity: number;
  /** decode misses per selected slot, in [0,1] */
  missRate: number;
  tokensPerSecond: number;
  /** bytes read from flash per decoded token */
  flashBytesPerToken: number;
}

export interface DeviceReport {
  id: string;
  before: Condition;
  after: Condition;
  /** nats per token: cross-entropy at the spec in force minus that at lambda 0, on the same tokens */
  crossEntropyLoss: number;
}

export interface TraceReport {
  id: string;
  url: string;
  /** different spans named flash.read in the answer of Jaeger's query API */
  flashReadSpans: number;
  /** misses in the agent's response to the traced request */
  missesCounted: number;
}

export interface DemoReport {
  devices: DeviceReport[];
  /** null where there is no Jaeger */
  trace: TraceReport | null;
}

const percent = (share: number, digits = 1): string => `${(share * 100).toFixed(digits)}%`;

export function renderReport(report: DemoReport): string {
  const table = new Table({
    head: ['device', '', 'λ', 'topJ', 'capacity', 'miss rate', 'tokens/s', 'flash MB/token', 'perplexity loss'],
    style: { head: [], border: [] },
    colAligns: ['left', 'left', 'right', 'right', 'right', 'right', 'right', 'right', 'right'],
  });
  for (const device of report.devices) {
    for (const [when, condition] of [['before', device.before], ['after', device.after]] as const) {
      table.push([
        when === 'before' ? device.id : '', when,
        condition.lambda.toFixed(2), String(condition.topJ), condition.capacity.toFixed(1),
        percent(condition.missRate), condition.tokensPerSecond.toFixed(0),
        (condition.flashBytesPerToken / 1e6).toFixed(3),
        when === 'before' ? '' : percent(Math.exp(device.crossEntropyLoss) - 1, 2),
      ]);
    }
  }
  const lines = [table.toString()];
  if (report.trace) {
    lines.push('', `trace in Jaeger: ${report.trace.url}`,
      `  ${report.trace.flashReadSpans} flash.read spans, ${report.trace.missesCounted} misses counted by the engine`);
  }
  return lines.join('\n');
}
