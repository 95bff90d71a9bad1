/** The other side of the wire, for tests: real services whose devices a test writes, and that keep surfaces and knowledge. */
import { Server, ServerCredentials, type ServiceError, status } from '@grpc/grpc-js';
import { type Device, type DeviceKnowledge, KnowledgeServiceService, type KnowledgeServiceServer, LearnerServiceService, type LearnerServiceServer, type Proposal, type QualitySurface } from '@moefleet/proto';

export class ScriptedRegistry {
  devices: Device[] = [];
  /** by text */
  readonly surfaces = new Map<string, QualitySurface>();
  readonly knowledge = new Map<string, DeviceKnowledge>();
  puts = 0;
  readonly proposed: Proposal[][] = [];
  readonly activities: string[] = [];
  /** every call but ReportActivity ends with it */
  fails: { code: status; details: string } | null = null;
  calls = 0;
  private server: Server | null = null;
  private port = 0;

  get address(): string {
    return `127.0.0.1:${this.port}`;
  }

  /** The same port at every start. */
  async start(): Promise<void> {
    const failure = () => {
      this.calls += 1;
      return this.fails && Object.assign(new Error(this.fails.details), this.fails) as unknown as ServiceError;
    };
    const service: LearnerServiceServer = {
      listLearnable: (_call, callback) => callback(failure(), { devices: this.devices }),
      getSurface: (call, callback) => {
        const error = failure();
        const surface = this.surfaces.get(call.request.textHash);
        callback(error ?? (surface ? null : { code: status.NOT_FOUND, details: 'no such surface' }), { surface });
      },
      putSurface: (call, callback) => {
        const error = failure();
        if (!error) {
          this.surfaces.set(call.request.surface!.textHash, call.request.surface!);
          this.puts += 1;
        }
        callback(error, {});
      },
      propose: (call, callback) => {
        const error = failure();
        if (!error) this.proposed.push(call.request.proposals);
        callback(error, { rolloutId: 'rollout-1' });
      },
      reportActivity: (call, callback) => {
        this.activities.push(call.request.activity);
        callback(null, {});
      },
    };
    const server = new Server();
    server.addService(LearnerServiceService, service);
    const knowledge: KnowledgeServiceServer = {
      listKnowledge: (_call, callback) => callback(failure(), { devices: [...this.knowledge.values()] }),
      putKnowledge: (call, callback) => {
        const error = failure();
        if (!error) for (const one of call.request.devices) this.knowledge.set(one.deviceId, one);
        callback(error, {});
      },
      explainLearner: (_call, callback) => callback({ code: status.UNIMPLEMENTED }),
    };
    server.addService(KnowledgeServiceService, knowledge);
    this.port = await new Promise<number>((resolve, reject) =>
      server.bindAsync(`127.0.0.1:${this.port}`, ServerCredentials.createInsecure(), (error, bound) => (error ? reject(error) : resolve(bound))));
    this.server = server;
  }

  stop(): void {
    this.server?.forceShutdown();
    this.server = null;
  }
}
